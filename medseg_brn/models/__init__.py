"""What is shared: a described and verified model folder, and the network that its description means."""
