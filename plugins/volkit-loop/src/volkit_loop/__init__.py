"""The loop backend: block volumes as image files in a pool directory, attached as loop devices."""
