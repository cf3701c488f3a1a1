"""A scan and its label map as one HTML page: three linked planes to look through, in any browser."""
