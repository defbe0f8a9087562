#!/bin/sh
# A model that is killed in its second pass.
read -r line
echo '{"gradient":"torch","declared":{"shape":[1,2,2]},"seeds":false,"python":"3","torch":null,"siblings":[]}' >&0
read -r line
echo '{"shape":[2,4]}' >&0
read -r line
echo 'the last words' >&2
kill -SEGV $$
