"""An owner's files between URLs and the sandbox.

``plan`` says what goes where, ``verdict`` what to do after each try and whose fault an end is: values and rules.
``mover`` runs the carrier through the identity switch, round by round, until all is moved or no try is worth it.
"""
