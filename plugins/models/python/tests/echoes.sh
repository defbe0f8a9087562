#!/bin/sh
# A model whose logits are the pixels, and whose gradient is the cotangent.
read -r line
echo '{"gradient":"torch","declared":{"shape":[1,2,2]},"seeds":false,"python":"3","torch":null,"siblings":[]}' >&0
while read -r line; do
    case "$line" in
        *'"op":"run"'*) echo '{"shape":[2,4],"kept":7}' >&0 ;;
        *'"op":"back"'*) echo '{"shape":[2,1,2,2]}' >&0 ;;
    esac
done
