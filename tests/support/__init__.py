"""What tests of several rooms use: small models, stand-ins, files, and the rules of the whole suite."""
