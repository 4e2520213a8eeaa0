"""`longrec bench load`: requests that come whether or not the server keeps up, and how long each took.

`population.py` says who asks and with which event, `sender.py` sends on time, `answers.py` refuses wrong answers,
`point.py` measures one rate, `search.py` many, and the highest within a limit, `report.py` tells.
"""
