// A client with ws, from npm: node ws.js PORT TOKEN. It fails by throwing.
const assert = require('node:assert')
const WebSocket = require('ws')

const [port, token] = process.argv.slice(2)
const open = (query, options) => {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/v3/ws?${query}`, options)
  const unread = []
  const waiting = []
  const put = (item) => (waiting.shift() ?? ((late) => unread.push(late)))(item)
  socket.on('message', (data, isBinary) => put([isBinary, data.toString()]))
  socket.on('pong', (data) => put(['pong', data.toString()]))
  socket.on('close', (code, reason) => put([code, reason.toString()]))
  socket.next = () => new Promise((done) => (unread.length ? done(unread.shift()) : waiting.push(done)))
  socket.json = async () => {
    const [isBinary, text] = await socket.next()
    assert.strictEqual(isBinary, false, text)
    return JSON.parse(text)
  }
  return socket
}

const main = async () => {
  // With the token in a header, as the typed library sends it.
  const headers = { authorization: `Bearer ${token}` }
  const socket = open('sessionId=s&afterSeq=0', { headers })
  assert.strictEqual((await socket.json()).event, 'session.snapshot')
  const submit = { type: 'turn.submit', clientId: 'c', writerId: 'w', sessionId: 's', content: 'hi' }
  socket.send(JSON.stringify(submit))
  let seq = 1
  let turn
  for (;;) {
    const message = await socket.json()
    if (message.type === 'ack') {
      turn = message.turnId
      continue
    }
    assert.strictEqual(message.seq, ++seq)
    if (message.event === 'turn.error') {
      assert.strictEqual(message.payload.turnId, turn)
      break
    }
  }
  const updated = await socket.json()
  assert.strictEqual(updated.event, 'session.updated')
  assert.strictEqual(updated.payload.snapshot.activeTurnId, undefined)
  socket.ping('are you there')
  assert.deepStrictEqual(await socket.next(), ['pong', 'are you there'])
  socket.send('{"type":"ping"', { fin: false })
  socket.send(' '.repeat(200000) + '}')
  assert.strictEqual((await socket.json()).event, 'heartbeat')
  socket.send('x')
  assert.match((await socket.json()).error, /^Invalid JSON/)
  socket.close(1000, 'bye')
  assert.deepStrictEqual(await socket.next(), [1000, ''])

  const long = open('sessionId=s', { headers })
  await long.json()
  long.send('x'.repeat(1048577))
  let last
  do last = await long.next()
  while (last[0] === false)
  assert.strictEqual(last[0], 1009)

  const stranger = open('sessionId=s&token=wrong')
  assert.deepStrictEqual(await stranger.json(), { error: 'Unauthorized' })
  assert.deepStrictEqual(await stranger.next(), [4001, 'unauthorized'])
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1) })
