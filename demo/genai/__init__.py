"""The demo of generative models: real weights, readable text, on the same platform."""
