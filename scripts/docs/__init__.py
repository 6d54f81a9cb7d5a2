"""The documentation: pages filled from the code, and a program that runs what they show."""
