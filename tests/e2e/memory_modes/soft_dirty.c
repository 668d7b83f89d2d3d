/*
 * Soft-dirty for a kernel without it, so that CRIU pre-dumps: which pages were written since the marks were cleared is found by what is
 * in them. Where CRIU clears a process's marks, with all of its tasks stopped, a sum of each of its pages goes into a file; where it
 * reads the marks, a page is marked unless its sum is there. A page that was written with what it held before is not marked, which
 * makes no difference to whoever wants to know what to copy. PAGEMAP_SCAN, which would say that there are no marks, does not exist.
 *
 * The files are in $SOFT_DIRTY, one for each process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096UL
#define PRESENT (1ULL << 63)
#define SWAPPED (1ULL << 62)
#define OF_A_FILE (1ULL << 61)
#define SOFT_DIRTY (1ULL << 55)
#define SCAN_TYPE 'f'
#define SCAN_NUMBER 16
/* Reserved, not used: nothing that a test would look at. */
#define TOO_LONG (4UL << 30)

struct sum {
	uint64_t page;
	uint64_t sum;
};

static struct sum *sums;
static size_t known;
static int known_of;

static ssize_t (*real_pread(void))(int, void *, size_t, off64_t)
{
	static ssize_t (*next)(int, void *, size_t, off64_t);

	if (!next)
		next = dlsym(RTLD_NEXT, "pread64");
	return next;
}

/* The process whose file of that name this is; 0 for any other file. */
static int owner(int descriptor, const char *name)
{
	char link[64], path[256], file[32];
	ssize_t length;
	int pid;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	if (sscanf(path, "/proc/%d/%31s", &pid, file) != 2 || strcmp(file, name))
		return 0;
	return pid;
}

static int open_of(int pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void name_sums(char *path, size_t size, int pid)
{
	const char *directory = getenv("SOFT_DIRTY");

	snprintf(path, size, "%s/%d.sums", directory ? directory : "/nowhere", pid);
}

/* FNV-1a over words. */
static int sum_of(int memory, uint64_t page, uint64_t *sum)
{
	uint64_t words[PAGE / 8];
	size_t index;

	if (real_pread()(memory, words, PAGE, page * PAGE) != PAGE)
		return 0;
	*sum = 0xcbf29ce484222325ULL;
	for (index = 0; index < PAGE / 8; index++)
		*sum = (*sum ^ words[index]) * 0x100000001b3ULL;
	return 1;
}

static int has_content(uint64_t entry)
{
	return (entry & (PRESENT | SWAPPED)) && !(entry & OF_A_FILE);
}

static void sum_range(int memory, int pagemap, uint64_t page, uint64_t end, FILE *out)
{
	uint64_t entries[512];
	size_t count, index;
	struct sum one;

	while (page < end) {
		count = end - page < 512 ? end - page : 512;
		if (real_pread()(pagemap, entries, count * 8, page * 8) != (ssize_t)count * 8)
			return;
		for (index = 0; index < count; index++) {
			one.page = page + index;
			if (has_content(entries[index]) && sum_of(memory, one.page, &one.sum))
				fwrite(&one, sizeof(one), 1, out);
		}
		page += count;
	}
}

/* All pages of a process, in the order of their addresses, as /proc/PID/maps has them. */
static int keep_sums(int pid)
{
	char path[256], line[512];
	unsigned long start, end;
	int memory = open_of(pid, "mem"), pagemap = open_of(pid, "pagemap");
	FILE *maps, *out;

	name_sums(path, sizeof(path), pid);
	out = fopen(path, "we");
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!out || !maps || memory < 0 || pagemap < 0)
		abort();
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && end - start < TOO_LONG)
			sum_range(memory, pagemap, start / PAGE, end / PAGE, out);
	fclose(maps);
	if (fclose(out))
		abort();
	close(memory);
	close(pagemap);
	known_of = 0;
	return 2;
}

static void load_sums(int pid)
{
	char path[256];
	struct sum one;
	size_t room = 0;
	FILE *file;

	if (known_of == pid)
		return;
	known_of = pid;
	known = 0;
	name_sums(path, sizeof(path), pid);
	file = fopen(path, "re");
	if (!file)
		return;
	while (fread(&one, sizeof(one), 1, file) == 1) {
		if (known == room) {
			room = room ? room * 2 : 1024;
			sums = realloc(sums, room * sizeof(one));
			if (!sums)
				abort();
		}
		sums[known++] = one;
	}
	fclose(file);
}

static int by_page(const void *key, const void *one)
{
	uint64_t wanted = *(const uint64_t *)key, page = ((const struct sum *)one)->page;

	return wanted < page ? -1 : wanted > page;
}

static int is_as_before(int memory, uint64_t page)
{
	struct sum *before = bsearch(&page, sums, known, sizeof(*sums), by_page);
	uint64_t sum;

	return before && sum_of(memory, page, &sum) && sum == before->sum;
}

static void mark(int pid, uint64_t *entries, size_t count, uint64_t first)
{
	int memory = open_of(pid, "mem");
	size_t index;

	load_sums(pid);
	for (index = 0; index < count; index++) {
		entries[index] &= ~SOFT_DIRTY;
		if (has_content(entries[index]) && !(memory >= 0 && known && is_as_before(memory, first + index)))
			entries[index] |= SOFT_DIRTY;
	}
	if (memory >= 0)
		close(memory);
}

/* CRIU asks this way only whether a page of its own is marked that it has just written. */
ssize_t read(int descriptor, void *into, size_t size)
{
	static ssize_t (*next)(int, void *, size_t);
	ssize_t length;

	if (!next)
		next = dlsym(RTLD_NEXT, "read");
	length = next(descriptor, into, size);
	if (length == 8 && owner(descriptor, "pagemap"))
		*(uint64_t *)into |= SOFT_DIRTY;
	return length;
}

ssize_t pread64(int descriptor, void *into, size_t size, off64_t offset)
{
	ssize_t length = real_pread()(descriptor, into, size, offset);
	int pid = length >= 8 ? owner(descriptor, "pagemap") : 0;

	if (pid)
		mark(pid, into, length / 8, offset / 8);
	return length;
}

ssize_t write(int descriptor, const void *from, size_t size)
{
	static ssize_t (*next)(int, const void *, size_t);
	int pid = size == 2 && !memcmp(from, "4", 2) ? owner(descriptor, "clear_refs") : 0;

	if (!next)
		next = dlsym(RTLD_NEXT, "write");
	return pid ? keep_sums(pid) : next(descriptor, from, size);
}

int ioctl(int descriptor, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, void *);
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = dlsym(RTLD_NEXT, "ioctl");
	if (((request >> 8) & 0xff) == SCAN_TYPE && (request & 0xff) == SCAN_NUMBER && owner(descriptor, "pagemap")) {
		errno = ENOTTY;
		return -1;
	}
	return next(descriptor, request, argument);
}
