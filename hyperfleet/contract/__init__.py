"""The contract: the OpenAPI document, and what requests, answers and specs must be by it."""
