"""Studies: many trainings and evaluations that answer one question, as tables, summaries and plots.

Every study is a list of runs (`runs`), their results as rows and a summary (`tables`), and figures (`plots`).
"""
