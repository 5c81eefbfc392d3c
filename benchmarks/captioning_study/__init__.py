"""What h-detach and the recipe's parts add to captions: many small trainings."""
