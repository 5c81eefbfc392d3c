"""Score captions: COCO metrics, diversity, significance."""
