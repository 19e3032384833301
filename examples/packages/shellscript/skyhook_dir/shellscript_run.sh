#!/bin/bash
# Runs the user's script for one stage: the ConfigMap key "<stage>.sh". A stage that the user has
# written no script for has nothing to do. The script is sourced, so it sees what this one sees and
# its shebang does not matter; its exit status is the step's.

stage=$1
script=${SKYHOOK_DIR}/configmaps/${stage}.sh

if [ ! -f "$script" ]; then
    echo "shellscript: the ConfigMap has no ${stage}.sh, nothing to do"
    exit 0
fi

echo "shellscript: running ${stage}.sh"
# shellcheck source=/dev/null
. "$script"
