# (rules)
