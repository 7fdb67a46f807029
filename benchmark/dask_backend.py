"""joblib's Dask backend, which alone would wait for ever for the result of a killed worker."""

from __future__ import annotations

from typing import Any

from joblib._dask import DaskDistributedBackend


class DaskBackend(DaskDistributedBackend):
    """Tells joblib of errors that are not the task's own."""

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Hand out a task; the callback gets its result, or the error that took it away."""
        future: Any = super().submit(func, callback)

        def ended(done: Any) -> None:
            if error := done.exception():
                callback(error)

        future.add_done_callback(ended)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a task returned, or raise its error."""
        if isinstance(out, BaseException):
            raise out
        return super().retrieve_result_callback(out)
