/* What two processes of MPI can say to each other: microvm compare compiles it with
 * the host's mpicc. It prints nanoseconds of a round trip and MiB a second. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define BATCHES 15
#define TRIPS 200
#define BLOCK (1 << 20)
#define BLOCKS 4
/* Seconds of a batch, at most: where one processor is all, and who waits does not give
 * it away, each message takes a turn of the scheduler's. */
#define BATCH 0.02

static char *block;

static void trips(int rank, int count, int bytes)
{
	for (int i = 0; i < count; i++) {
		if (rank == 0) {
			MPI_Send(block, bytes, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
			MPI_Recv(block, 1, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		} else {
			MPI_Recv(block, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			MPI_Send(block, 1, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
		}
	}
}

/* As many as fit into a batch; both processes have to know it. */
static int fitting(int rank, int most, int bytes)
{
	double start;
	int count;

	trips(rank, 2, bytes);
	start = MPI_Wtime();
	trips(rank, 2, bytes);
	count = (int)(BATCH / ((MPI_Wtime() - start) / 2 + 1e-9));
	if (count > most)
		count = most;
	if (count < 1)
		count = 1;
	MPI_Bcast(&count, 1, MPI_INT, 0, MPI_COMM_WORLD);
	return count;
}

static void measure(int rank, const char *name, int most, int bytes)
{
	double took[BATCHES];
	int count = fitting(rank, most, bytes);

	trips(rank, count, bytes);
	for (int i = 0; i < BATCHES; i++) {
		double start = MPI_Wtime();

		trips(rank, count, bytes);
		took[i] = (MPI_Wtime() - start) / count;
	}
	if (rank != 0)
		return;
	printf("@m %s", name);
	for (int i = 0; i < BATCHES; i++)
		printf(" %.3f", bytes == 1 ? took[i] * 1e9 : bytes / took[i] / (1 << 20));
	printf("\n");
}

int main(int argc, char **argv)
{
	int rank, size;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	block = calloc(1, BLOCK);
	if (size != 2 || !block) {
		if (rank == 0)
			printf("it needs two processes, and there are %d\n", size);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
	measure(rank, "mpi_round_trip", TRIPS, 1);
	measure(rank, "mpi_stream", BLOCKS, BLOCK);
	if (rank == 0)
		printf("@end\n");
	MPI_Finalize();
	return 0;
}
