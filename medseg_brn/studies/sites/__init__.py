"""Several sites: what a norm does where every laboratory or scanner has its own scale and offset."""
