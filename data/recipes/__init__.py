"""Settings of each data set; installed as the package `dcwh.recipes`."""
