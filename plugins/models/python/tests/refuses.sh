#!/bin/sh
# A process that cannot load the model.
read -r line
echo '{"error":"there is no such model"}' >&0
read -r line
