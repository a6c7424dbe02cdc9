"""An OpenAI-compatible server: any model of the library, for the tools that people have."""
