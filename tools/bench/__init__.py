"""The benchmark: this package and its peers, measured in turn in one run. See README.md."""
