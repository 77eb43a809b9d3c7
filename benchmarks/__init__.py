"""Speed and memory against named peers. Nothing here is imported by the product or its tests."""
