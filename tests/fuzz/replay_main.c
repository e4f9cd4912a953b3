/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_main.c - main() of a fuzz target outside libFuzzer: run every file of the given folders through
 * it, whole, truncated and damaged in ways drawn from a fixed seed, so that ordinary CI repeats them.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_BYTES_MAX (1u << 20)
#define VARIANTS_PER_FILE 256u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv);

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* An exact-size heap copy, so that a sanitizer sees a read of one byte too many. */
static void run_one(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	if (size)
		memcpy(copy, data, size);
	(void)LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void run_variants(const uint8_t *data, size_t size)
{
	static const uint8_t edges[] = { 0x00, 0xff, 0x7f, 0x80, 0x01 };
	uint8_t *damaged = malloc(size ? size : 1);

	if (!damaged)
		abort();
	for (unsigned i = 0; i < VARIANTS_PER_FILE && size; i++) {
		size_t cut = next_random() % 4 ? size : next_random() % size;

		memcpy(damaged, data, size);
		for (uint64_t hits = 1 + next_random() % 4; hits > 0; hits--) {
			size_t at = next_random() % size;

			if (next_random() % 2)
				damaged[at] ^= (uint8_t)(1u << (next_random() % 8));
			else
				damaged[at] = edges[next_random() % sizeof(edges)];
		}
		run_one(damaged, cut);
	}
	free(damaged);
}

static int run_file(const char *path)
{
	uint8_t *data = malloc(INPUT_BYTES_MAX);
	FILE *f = fopen(path, "rb");
	size_t size;

	if (!f || !data) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		free(data);
		if (f)
			(void)fclose(f);
		return -1;
	}
	size = fread(data, 1, INPUT_BYTES_MAX, f);
	(void)fclose(f);
	run_one(data, size);
	run_variants(data, size);
	free(data);
	return 0;
}

/* Returns how many files ran, or -1. */
static int run_folder(const char *folder)
{
	struct dirent **entries;
	int count = scandir(folder, &entries, NULL, alphasort);
	int files = 0;

	if (count < 0) {
		fprintf(stderr, "%s: %s\n", folder, strerror(errno));
		return -1;
	}
	for (int i = 0; i < count; i++) {
		char path[4096];
		struct stat st;

		(void)snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
		free(entries[i]);
		if (files < 0 || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		files = run_file(path) < 0 ? -1 : files + 1;
	}
	free(entries);
	return files;
}

int main(int argc, char **argv)
{
	int total = 0;

	if (LLVMFuzzerInitialize)
		(void)LLVMFuzzerInitialize(&argc, &argv);
	run_one((const uint8_t *)"", 0);
	for (int i = 1; i < argc; i++) {
		int files = run_folder(argv[i]);

		if (files < 0)
			return 1;
		total += files;
	}
	printf("%d files replayed, %u variants of each\n", total, VARIANTS_PER_FILE);
	return total > 0 ? 0 : 1; /* a replay of nothing is no test */
}
