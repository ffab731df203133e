/* What parallel programs do, as far as a machine can do it wrong: a ring of
 * messages small and large, collective sums, and a solver (conjugate gradients
 * for -u'' = 1 on the unit interval, whose answer is x (1 - x) / 2).
 *
 * Each rank prints a line; all but its machine are the same wherever it runs. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 300000, POINTS = 60 };

static int rank, size;

/* A token that each rank adds to, and a block that must come back unchanged. */
static int ring(void) {
    int next = (rank + 1) % size, previous = (rank + size - 1) % size, token = 0;
    int *block = malloc(WORDS * sizeof *block), good = 1;
    for (int i = 0; i < WORDS; i++) block[i] = rank * WORDS + i;
    MPI_Request sent;
    if (rank == 0) {
        MPI_Isend(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD, &sent);
        MPI_Wait(&sent, MPI_STATUS_IGNORE);
    }
    MPI_Recv(&token, 1, MPI_INT, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank != 0) {
        token += rank;
        MPI_Send(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD);
    }
    MPI_Bcast(&token, 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Sendrecv_replace(block, WORDS, MPI_INT, next, 1, previous, 1, MPI_COMM_WORLD,
                         MPI_STATUS_IGNORE);
    for (int i = 0; i < WORDS; i++) good &= block[i] == previous * WORDS + i;
    free(block);
    return good ? token : -1;
}

static double dot(const double *a, const double *b, int n) {
    double mine = 0, all;
    for (int i = 1; i <= n; i++) mine += a[i] * b[i];
    MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return all;
}

/* The neighbours' values at both ends; 0 at the interval's. */
static void exchange(double *v, int n) {
    int left = rank > 0 ? rank - 1 : MPI_PROC_NULL;
    int right = rank < size - 1 ? rank + 1 : MPI_PROC_NULL;
    v[0] = v[n + 1] = 0;
    MPI_Sendrecv(&v[1], 1, MPI_DOUBLE, left, 2, &v[n + 1], 1, MPI_DOUBLE, right, 2,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Sendrecv(&v[n], 1, MPI_DOUBLE, right, 3, &v[0], 1, MPI_DOUBLE, left, 3,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* Returns the largest error of the answer. */
static double solve(int *steps) {
    int n = POINTS / size;
    double h = 1.0 / (POINTS + 1), worst = 0, all;
    double *u = calloc(4 * (n + 2), sizeof *u), *r = u + n + 2, *p = r + n + 2, *q = p + n + 2;
    for (int i = 1; i <= n; i++) r[i] = p[i] = h * h;
    double rr = dot(r, r, n);
    for (*steps = 0; rr > 1e-24 && *steps < 2 * POINTS; ++*steps) {
        exchange(p, n);
        for (int i = 1; i <= n; i++) q[i] = 2 * p[i] - p[i - 1] - p[i + 1];
        double alpha = rr / dot(p, q, n);
        for (int i = 1; i <= n; i++) u[i] += alpha * p[i], r[i] -= alpha * q[i];
        double next = dot(r, r, n);
        for (int i = 1; i <= n; i++) p[i] = r[i] + next / rr * p[i];
        rr = next;
    }
    for (int i = 1; i <= n; i++) {
        double x = (rank * n + i) * h, error = fabs(u[i] - x * (1 - x) / 2);
        if (error > worst) worst = error;
    }
    MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    free(u);
    return all;
}

int main(int argc, char **argv) {
    char machine[40] = "";
    int steps, sum, mine;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    mine = (rank + 1) * (rank + 1);
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int token = ring();
    double error = solve(&steps);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!file || !fgets(machine, 37, file)) return 2;
    printf("rank %d of %d: token %d, squares %d, %s, machine %s\n", rank, size, token, sum,
           error < 1e-9 && steps < 2 * POINTS ? "solved" : "not solved", machine);
    fflush(stdout);
    MPI_Finalize();
    return argc > 1 ? atoi(argv[1]) : 0;
}
