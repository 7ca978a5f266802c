// A connection that a test can cut.
#ifndef GLA_INFERENCE_SERVICE_TESTING_TCP_RELAY_H_
#define GLA_INFERENCE_SERVICE_TESTING_TCP_RELAY_H_

#include <atomic>
#include <thread>

namespace gla::inference {

// Passes bytes between one client and a server on this machine until it is cut,
// as the network does when one of them vanishes.
class TcpRelay {
 public:
  explicit TcpRelay(int server_port);
  // REQUIRES: a client has connected.
  ~TcpRelay();
  TcpRelay(const TcpRelay&) = delete;
  TcpRelay& operator=(const TcpRelay&) = delete;

  int port() const { return port_; }  // for the client

  // Ends both connections.
  void Cut();

 private:
  int listener_ = -1;
  int server_ = -1;
  int port_ = 0;
  std::atomic<int> client_{-1};
  std::thread to_server_, to_client_;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_TESTING_TCP_RELAY_H_
