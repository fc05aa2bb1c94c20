"""The OpenAI side of a router: requests for generative models go to the engines that serve them, answers stream back.

For `serving.router`. Begin with `routes`.
"""
