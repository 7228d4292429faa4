"""The OpenAPI document, and validation against it. May import settings and engine, but no database."""
