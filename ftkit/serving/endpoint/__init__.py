"""What an endpoint gets of ftkit: these modules and the scoring script. They import nothing else of it."""
