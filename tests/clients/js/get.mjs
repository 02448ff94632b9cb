// Fetches a URL and says the status, or the code of the error.
const { url } = JSON.parse(process.argv[2]);
const said = await fetch(url).then((answer) => answer.status, (error) => error.code);
console.log("say", JSON.stringify(said));
