"""Models over HTTP, in OpenAI's protocol, and pages to talk to them."""
