"""The method's other systems, each a study: claims stated beforehand, and what was measured of them."""
