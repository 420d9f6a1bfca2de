"""From a layer's tar to an EROFS image, in one pass."""
