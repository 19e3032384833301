#!/bin/sh
# Undoes what one run of the harness recorded in DIR/journal, last first, then removes DIR.
# Called as `clean.sh DIR`. A process is killed only if its start time is the recorded one, so a
# number that the system gave to somebody else since is left alone.
set -u
run=$1
[ -d "$run" ] || exit 0

# Field 22 of stat, counted behind the name, which may hold spaces.
start_time() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    set -- ${stat##*) }
    echo "${20}"
}

kill_cgroup() {
    tries=0
    while [ "$tries" -lt 50 ]; do
        pids=$(find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null)
        [ -n "$pids" ] && kill -KILL $pids 2>/dev/null
        [ -e "$1/freezer.state" ] && echo THAWED >"$1/freezer.state" 2>/dev/null
        [ -e "$1/cgroup.freeze" ] && echo 0 >"$1/cgroup.freeze" 2>/dev/null
        find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null
        [ -d "$1" ] || return 0
        sleep 0.1
        tries=$((tries + 1))
    done
    echo "clean: cgroup $1 is still in use" >&2
}

if [ -e "$run/journal" ]; then
    tac "$run/journal" | while read -r kind what since; do
        case $kind in
        process)
            if [ "$(start_time "$what")" = "$since" ]; then
                kill -KILL -- "-$what" 2>/dev/null || kill -KILL "$what" 2>/dev/null
            fi
            ;;
        cgroup) [ -d "$what" ] && kill_cgroup "$what" ;;
        mount) mountpoint -q "$what" 2>/dev/null && umount -l "$what" ;;
        netns) [ -e "/run/netns/$what" ] && ip netns delete "$what" ;;
        link) [ -e "/sys/class/net/$what" ] && ip link delete "$what" ;;
        sysctl) echo "$since" >"/proc/sys/$what" ;;
        tree) rm -rf --one-file-system "$what" ;;
        esac
    done
fi
rm -rf --one-file-system "$run"
