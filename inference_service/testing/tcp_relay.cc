#include "inference_service/testing/tcp_relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "glog/logging.h"

namespace gla::inference {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

void Pump(int from, int to) {
  char buffer[4096];
  while (true) {
    const ssize_t n = read(from, buffer, sizeof(buffer));
    if (n <= 0 || send(to, buffer, n, MSG_NOSIGNAL) != n) return;
  }
}

}  // namespace

TcpRelay::TcpRelay(int server_port) {
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  listener_ = socket(AF_INET, SOCK_STREAM, 0);
  PCHECK(bind(listener_, any, size) == 0);
  PCHECK(listen(listener_, 1) == 0);
  PCHECK(getsockname(listener_, any, &size) == 0);
  port_ = ntohs(address.sin_port);
  server_ = socket(AF_INET, SOCK_STREAM, 0);
  address = Loopback(server_port);
  PCHECK(connect(server_, any, size) == 0);
  to_server_ = std::thread([this] {
    client_ = accept(listener_, nullptr, nullptr);
    to_client_ = std::thread([this] { Pump(server_, client_); });
    Pump(client_, server_);
  });
}

TcpRelay::~TcpRelay() {
  Cut();
  to_server_.join();
  to_client_.join();
  for (int fd : {listener_, server_, client_.load()}) close(fd);
}

void TcpRelay::Cut() {
  shutdown(server_, SHUT_RDWR);
  shutdown(client_, SHUT_RDWR);
}

}  // namespace gla::inference
