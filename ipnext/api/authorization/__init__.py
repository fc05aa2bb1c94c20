"""Authentication and authorization of requests, their audit entries, and details that answers hide.

For the application and its routes. Begin with `access`; `authentication` is the middleware, and
`endpoint_permission` has the dependency of each endpoint.
"""
