#!/bin/sh
# A process that answers with something else than JSON.
read -r line
echo 'hello' >&0
read -r line
