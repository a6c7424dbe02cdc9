"""Looking inside: diagrams, maps of attention, an architecture as one file, a page in which a model runs."""
