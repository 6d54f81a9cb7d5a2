"""Where loops come from: folders, lists, prepared data sets."""
