"""Numbers that papers print, as facts: one CSV file a paper, one row a number.

Every value was read off a table (one off a slide) of the paper that `papers.yaml` names; nothing
here was measured with querybench. Percentages are as printed; an empty field was not printed.

| column | meaning |
|---|---|
| `paper`, `table` | key of `papers.yaml`; the table as the paper numbers it |
| `dataset`, `model` | data and victim, in our spelling |
| `defense`, `defense_params` | defense, `none` for no defense; parameters, `k=v` joined by `;` |
| `matched_drop` | points of clean accuracy that the strength was chosen to cost |
| `attack`, `attack_params` | attack, `clean` for no attack; parameters, likewise |
| `norm`, `eps`, `queries` | threat; radius in units of the [0, 1] range; queries for each image |
| `metric`, `value`, `unit` | what was measured, the number, and its unit |
| `radius` | l2 radius of certified accuracy |
| `note` | what is uncertain, or taken from the text around the table |
"""
