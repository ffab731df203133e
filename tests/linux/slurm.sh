# A Slurm of one node in a directory, and what is asked of it. In a mount, network
# and UTS namespace of its own; the last of it goes with this script.
place=$1 microvm=$2 mpich=$3 openmpi=$4
set -u
hostname node1
printf '127.0.0.1 localhost\n10.99.9.1 node1\n' >"$place/hosts"
mount --bind "$place/hosts" /etc/hosts
# Slurm finds no host where there is nothing but the loopback interface.
ip link set lo up
ip tuntap add slurm0 mode tap && ip addr add 10.99.9.1/24 dev slurm0 && ip link set slurm0 up
mkdir "$place/state" "$place/spool" "$place/run"
export XDG_RUNTIME_DIR="$place/run" SLURM_CONF="$place/slurm.conf"
cat >"$SLURM_CONF" <<C
ClusterName=test
SlurmctldHost=node1(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
CredType=cred/munge
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobCompType=jobcomp/filetxt
JobCompLoc=$place/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=3
NodeName=node1 NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$place/cgroup.conf"
dd if=/dev/urandom of="$place/key" bs=1 count=1024 2>/dev/null
chmod 400 "$place/key"
munged --force --key-file "$place/key" --socket "$place/munge.socket" \
    --pid-file "$place/munged.pid" --log-file "$place/munged.log" \
    --seed-file "$place/munged.seed" --num-threads 2 >&2
slurmctld >/dev/null 2>&1 </dev/null
slurmd >/dev/null 2>&1 </dev/null
end() {
    for file in slurmd slurmctld munged; do kill "$(cat "$place/$file.pid")"; done 2>/dev/null
}
trap end EXIT
# $1 seconds at most, until the rest succeeds.
until_() {
    limit=$1; shift
    while ! "$@"; do
        [ "$limit" -gt 0 ] || { echo "not in time: $*" >&2; return 1; }
        limit=$((limit - 1)); sleep 1
    done
}
node_is() { [ "$(sinfo -h -N -o %T)" = "$1" ]; }
# The longest that anything may take in an emulated machine.
until_ 60 node_is idle || { cat "$place/slurmctld.log" "$place/slurmd.log" >&2; exit 1; }

run() { srun --quiet "$@"; }
vm="$microvm run --memory 256M --cpus 1 --bind $place"
state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p'; }
state_is() { [ "$(state "$1")" = "$2" ]; }
code() { scontrol show job "$1" | sed -n 's/.*ExitCode=\([0-9:]*\).*/\1/p'; }
batch() { sbatch --parsable --output /dev/null "$@"; }
# Processes of jobs, and what they have in the run-time directory.
left() {
    until_ 30 nobody
    ls "$place/run/microvm" 2>/dev/null
    echo "$(pgrep -c -f "^$microvm run .*$1") left"
}
nobody() { ! pgrep -f "^$microvm run .*$pattern" >/dev/null; }

# It runs into its limit, of a minute, beside all the rest.
limited=$(batch --time 1 --wrap "exec $vm host sleep 1001")

echo "== pmi2 natively"; run --mpi=pmi2 -n 2 "$mpich"
echo "== pmix natively"; run --mpi=pmix -n 2 "$openmpi"
echo "== pmi2"; run --mpi=pmi2 -n 2 $microvm run --memory 512M host "$mpich"
echo "== pmix"; run --mpi=pmix -n 2 $microvm run --memory 512M host "$openmpi"
echo "== pmi2 apart"; run --mpi=pmi2 -n 2 $microvm run --join never --memory 256M host "$mpich"
echo "== pmix apart"; run --mpi=pmix -n 2 $microvm run --join never --memory 256M host "$openmpi"

echo "== statuses"
run $vm host sh -c 'exit 7'; echo $?
run $vm host sh -c 'kill -TERM $$' 2>/dev/null; echo $?

echo "== array"
sbatch --wait --array 0-1 --output "$place/array.%a" \
    --wrap "$vm host sh -c 'echo element \$SLURM_ARRAY_TASK_ID'" >&2
cat "$place/array.0" "$place/array.1"

echo "== suspended"
job=$(batch --wrap "exec $vm host sh -c 'sleep 1; : >$place/ready; sleep 3'")
until_ 60 test -e "$place/ready"
scontrol suspend "$job"
stopped() { grep -q '^State:.T' "/proc/$(pgrep -f "^$microvm run .*ready")/status"; }
until_ 20 stopped && echo T
scontrol resume "$job"
until_ 60 state_is "$job" COMPLETED
echo "$(state "$job") $(code "$job")"

echo "== accounted"
# What Slurm measures of a job while it runs, without a database: seconds of processor
# and KiB of memory, of a guest that has computed for three seconds.
busy='end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done'
job=$(batch --job-name busy --wrap "exec $vm host sh -c '$busy; : >$place/busy; sleep 4; exit 6'")
until_ 90 test -e "$place/busy"
sstat --allsteps --jobs "$job" --noheader --parsable2 --noconvert --format AveCPU,MaxRSS >"$place/used"
cat "$place/used" >&2
tr '.|' ' ' <"$place/used" | awk '{ split($1, t, ":"); s = t[1] * 3600 + t[2] * 60 + t[3]
    cpu += s; if ($NF + 0 > rss) rss = $NF + 0 }
    END { print (cpu >= 2 ? "processor" : "no processor"), (rss >= 32768 ? "memory" : "no memory") }'
until_ 60 state_is "$job" FAILED
recorded() { grep -q "Name=busy JobState=FAILED .*ExitCode=6:0" "$place/completed"; }
until_ 10 recorded && echo recorded

echo "== cancelled"
job=$(batch -n 2 --wrap "srun --mpi=pmi2 -n 2 $vm host sh -c ': >$place/on; exec sleep 1002'")
until_ 60 test -e "$place/on"
scancel "$job"
until_ 60 state_is "$job" CANCELLED
state "$job"
pattern=1002 left 1002

echo "== time limit"
until_ 180 state_is "$limited" TIMEOUT
state "$limited"
pattern=1001 left 1001

echo "== drained"
job=$(batch --wrap "$vm host sh -c ': >$place/here; sleep 2; : >$place/done'")
until_ 60 test -e "$place/here"
scontrol update nodename=node1 state=drain reason=test
until_ 60 state_is "$job" COMPLETED
[ -e "$place/done" ] && echo finished
until_ 20 node_is drained && echo drained
pattern=here left here
