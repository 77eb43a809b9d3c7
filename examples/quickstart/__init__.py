"""The quickstart: from nothing to a scored and exported model on a CPU."""
