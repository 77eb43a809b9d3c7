"""What a teacher says about each token: as arrays of a batch, computed live, or stored once and read again."""
