"""Files to arrays in mm and back: the only readers and writers of images, and the only LPS to RAS code."""
