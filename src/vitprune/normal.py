"""The normal distribution's quantile that all 95 % intervals use."""

Z95 = 1.959963984540054  # 97.5 % quantile: mean ± Z95 standard errors
