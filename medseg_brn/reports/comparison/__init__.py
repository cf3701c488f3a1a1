"""The report of a comparison of normalizations, from the files in its folder."""
