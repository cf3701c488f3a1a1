"""Data-parallel training: renorm with merged memory against SyncBatchNorm and BatchNorm by oneself."""
