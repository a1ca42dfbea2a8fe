"""Pictures and reports of what a method found."""
