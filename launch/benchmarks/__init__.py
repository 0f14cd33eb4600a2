"""The works of `launch.benchmark`: how they are measured, what they are compared with, and the works themselves."""
