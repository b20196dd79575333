"""The pages, one module for each subject. A page reads from the API and names a template; what it changes, it changes through the API."""
