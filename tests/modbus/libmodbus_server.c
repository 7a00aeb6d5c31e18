/* A Modbus server of libmodbus: `server tcp PORT` or `server rtu PATH UNIT`.
   Registers hold their own address (input registers: plus 5000), coils are on where the address divides by three.
   Prints the port that it listens on (tcp) or "ready", and serves until its input ends. */
#include <errno.h>
#include <modbus.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

static modbus_mapping_t *mapping(void) {
  modbus_mapping_t *map = modbus_mapping_new(2000, 2000, 2000, 2000);
  for (int i = 0; i < 2000; i++) {
    map->tab_registers[i] = i;
    map->tab_input_registers[i] = i + 5000;
    map->tab_bits[i] = i % 3 == 0;
    map->tab_input_bits[i] = i % 3 == 0;
  }
  return map;
}

static int ended(int fd) { /* waits for the line; 1 when our input ended first */
  fd_set set;
  FD_ZERO(&set);
  FD_SET(0, &set);
  FD_SET(fd, &set);
  return select(fd + 1, &set, NULL, NULL, NULL) < 0 || FD_ISSET(0, &set);
}

int main(int argc, char **argv) {
  uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
  modbus_mapping_t *map = mapping();
  int tcp = argc > 1 && !strcmp(argv[1], "tcp"), listening = -1;
  modbus_t *bus = tcp ? modbus_new_tcp("127.0.0.1", 0) : modbus_new_rtu(argv[2], 9600, 'N', 8, 1);
  if (!bus || !map) return 1;
  if (tcp) {
    struct sockaddr_in name;
    socklen_t size = sizeof name;
    listening = modbus_tcp_listen(bus, 1);
    if (listening < 0 || getsockname(listening, (struct sockaddr *)&name, &size)) return 1;
    printf("%d\n", ntohs(name.sin_port));
  } else {
    if (modbus_set_slave(bus, atoi(argv[3])) || modbus_connect(bus)) return 1;
    printf("ready\n");
  }
  fflush(stdout);
  for (;;) {
    if (tcp) {
      if (ended(listening)) return 0;
      modbus_tcp_accept(bus, &listening);
    }
    for (;;) {
      if (ended(modbus_get_socket(bus))) return 0;
      int size = modbus_receive(bus, query);
      if (size > 0) modbus_reply(bus, query, size, map);
      else if (size < 0 && tcp) break;
    }
    modbus_close(bus);
  }
}
