"""Classifiers over HTTP: the contract, the server of `bench serve`, the client of `http:`."""
